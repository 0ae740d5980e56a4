"""Where smoothing scales can be folded into the operator before."""
