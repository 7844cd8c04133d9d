"""Published classifiers on ImageNet's validation images."""
