"""Images in: sources (folders, Parquet, an embedded set), views, the order of samples, batches."""
