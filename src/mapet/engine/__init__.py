"""One resumable training loop under every training. It is independent of objectives, visual tokens and labels."""
