"""Base of all stages: definition, context, inputs, sizes, cost and writing of stores."""
