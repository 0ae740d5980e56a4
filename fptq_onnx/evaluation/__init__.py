"""Perplexity, KL divergence, LAMBADA, log-likelihoods, and their standard errors."""
