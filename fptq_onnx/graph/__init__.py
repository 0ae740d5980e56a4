"""Read-only views of a graph: constants, linears, fold sites. Nothing here changes a model."""
