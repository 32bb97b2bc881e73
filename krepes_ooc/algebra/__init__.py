"""Arrays only: kernel, landmarks, moments, spectrum, step, influence and their measures."""
