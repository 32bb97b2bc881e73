"""HTML elements, charts as SVG, thumbnails and sample views for the panels."""
