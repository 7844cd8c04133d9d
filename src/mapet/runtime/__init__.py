"""What every command needs from its surroundings: seeds, files, progress, devices, run directories."""
