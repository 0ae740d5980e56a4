"""Graph optimization: patterns that exporters decompose, in the form that runs faster."""
