"""Pictures: folders, archives and tables of encoded images, checked and decoded."""
