"""What stages share: the definition of a stage, its context, inputs, sizes, cost and writing."""
