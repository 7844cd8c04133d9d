"""k-means: over points in memory or on disk, in one process or several."""
