"""What panels are drawn with: HTML elements, charts as SVG, thumbnails, sample views."""
