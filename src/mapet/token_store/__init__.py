"""Visual tokens of a collection of images, made once and found again by what the images contain."""
