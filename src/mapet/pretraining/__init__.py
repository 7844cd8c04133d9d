"""From a batch to a finished run: step, schedule, checkpoints, trainer."""
