"""Stage landmarks: choose the m landmark samples, features -> landmarks."""
