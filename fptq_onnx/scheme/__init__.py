"""Plain data of a quantization: configuration, plan, recipes, statistics, stored weights."""
