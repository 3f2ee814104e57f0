"""What compiled kernels and their callers agree on: the fields of a call and the sizes of scratch."""

from __future__ import annotations

CHUNK = 16
"""Steps whose emissions are brought into vectors together."""
FRONT = 4
"""Sequences that share one reading of a transition matrix where vectors run along the states."""

# The fields of a call, an array of int64 whose pointers are addresses; a stride counts elements
(
    TICKET,  # int64*, the next task, shared by the threads
    NUM_TASKS,
    TASKS,  # int64*, first place in `order` of each task, and one past the last
    ORDER,  # int64*, sequences
    LENGTHS,  # int64*
    NUM_STEPS,
    NUM_STATES,
    REVERSE,
    INCLUDE_EMISSION,
    TAGGED,  # messages as 0: logs, scaled; 1: linear where they can be, for `numba_backward`; 2: logs, normalised
    SCRATCH,
    SCRATCH_BYTES,  # of each thread
    EMISSION,
    EMISSION_BATCH,  # strides count elements
    EMISSION_STEP,
    TANGENT,  # of the emissions; strides as the emissions'
    INITIAL,
    INITIAL_BATCH,
    INITIAL_TANGENT,
    FINAL,
    FINAL_BATCH,
    WEIGHTS,
    WEIGHTS_BATCH,
    WEIGHTS_SLOT,
    WEIGHTS_FROM,
    WEIGHTS_TO,
    WEIGHTS_TANGENT,
    IS_VARYING,
    MATRIX,  # F*, linear weights in the kernel's own layout
    MATRIX_TANGENT,
    TINY,  # int64*, destinations whose sums need the log weights, and whether there are any
    SHIFT,  # float64*, log scale taken out of the matrix
    NUM_EDGES,  # of the streams' kernels, -1 where weights are a matrix
    EDGE_ORDER,  # int64*, edges by target
    EDGE_START,
    EDGE_COUNT,
    EDGE_SOURCE,  # int64*, of each edge
    EDGE_TARGET,
    OFFSETS,  # int64*, of the bands
    NUM_OFFSETS,
    VALUES,  # outputs; null where not wanted
    VALUE_TANGENTS,
    SCALES,
    SCALE_TANGENTS,
    TOTAL,
    LAST,
    LAST_TANGENTS,
    LOG_LIKELIHOOD,
    EARLIER,  # float64* (2, batch), log scales to add to the log-likelihoods, or null
    EARLIER_BATCH,
    MESSAGES,  # forward messages, for what goes back along them
    COTANGENT,
    GRADIENT_SCALE,
    COUNTS,  # F*, one array a thread, or a sequence
    COUNTS_SIZE,  # elements of each
    IS_COUNTED_APART,  # whether a sequence
    STATES,
    SCORES,
    SEGMENT,  # steps whose back-pointers are kept at once
    FRAMES,  # of the mixtures' kernel
    NUM_FRAMES,
    NUM_FEATURES,
    NUM_MIXTURES,
    MEANS,  # (K M, D)
    INVERSE_SPREADS,  # (K M, D), one over the standard deviation
    CONSTANTS,  # (K M,), all of a score but the squares
    START,  # (B, K), cotangent of what the first step starts from
    NUM_DURATIONS,
    DURATIONS,  # float64* (D, K) of the segments' kernels, as TAILS; states padded to whole vectors
    DURATIONS_BATCH,
    TAILS,
    TAILS_BATCH,
    BEGINS,  # float64* (B, T, K)
    ENDS,
    AFTER,
    POSTERIORS,
    DURATION_COUNTS,  # float64* (B, D, K)
    TAIL_COUNTS,
    NUM_ROWS,  # of the lattice's kernels
    NUM_COLUMNS,
    GRID,  # float64* (B, N, M), scores of cells
    GRID_BATCH,
    BOUNDS,  # int64* (B, N, 2), first and last column of each row that may be entered
    BOUNDS_BATCH,
    CORNERS,  # int64* (B, 2), last row and column
    CORNERS_BATCH,
    OPENS,  # whether ways begin anywhere in the first row
    ENDS_OPEN,
    ROW_FEATURES,  # float64* (B, D, rows), rows up to whole strips
    ROW_FEATURES_BATCH,
    COLUMN_FEATURES,  # float64* (B, D, columns), last column first, a strip of zeros before and behind
    COLUMN_FEATURES_BATCH,
    COLUMN_STRIDE,
    PATH_LENGTH,
    STEPS,  # int64* (3, 3), rows, columns and weight of each step
    METRIC,  # 0: the grid is given; 1: less Euclidean distances of features; 2: less their squares
    POINTERS,  # int16* or int32* (steps, B, K) of the streams' kernels: the best source of each state
    IS_WIDE,  # whether they are int32
    ORIGINS,  # int64* (B, K)
    TAKEN,  # int64* (B,), steps before this call
    PENDING,  # int64* (B,)
    SCALE_EVERY,
    SCALE_LAST,
    IS_CENTRED,
    MAX_DELAY,  # -1 where there is none
    COMMITTED,  # int64* (B,), steps that are final now; -1 where pointers lead nowhere
    FORCED,  # int64* (B,)
) = range(107)
NUM_FIELDS = 107


STRIP = 32
"""Rows of a lattice that are swept together."""


def padded(count: int, lanes: int) -> int:
    """`count` rounded up to whole vectors."""
    return (count + lanes - 1) // lanes * lanes
