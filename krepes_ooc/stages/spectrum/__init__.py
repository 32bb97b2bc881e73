"""Stage spectrum: eigenpairs of the landmark kernel and the start A_0, kernel -> spectrum."""
