"""Probes: what frozen features are worth to k-NN, linear layers, logistic regression and attention."""
