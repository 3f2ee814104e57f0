"""HMMs on streams: the processor, a thread-safe front of it, and what chooses the size of chunks."""

from .control import AdaptiveChunks
from .processor import StreamingHMMProcessor, StreamStatistics
from .queue import StreamingQueue

__all__ = ["AdaptiveChunks", "StreamStatistics", "StreamingHMMProcessor", "StreamingQueue"]
