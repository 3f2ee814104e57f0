"""Speech: sound files, features, label files, and aligners trained on phones alone."""
