"""Fine-tuning: the whole network is trained on labelled images, behind a backbone's weights or from scratch."""
