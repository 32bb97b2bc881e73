"""Stage retraining: networks trained again without each group, the truth for group influence."""
