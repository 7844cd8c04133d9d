"""Published classifiers on labelled images, prepared as published."""
