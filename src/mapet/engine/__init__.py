"""One resumable training loop under every training. It knows no objective, no visual tokens and no labels."""
