"""Variational autoencoders as probabilistic programs in Pyro, and log-likelihoods that carry their error."""
