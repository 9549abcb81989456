"""Self-contained HTML pages: the page builder, SVG charts and the style sheet that all pages of the project share."""
