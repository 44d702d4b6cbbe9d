"""Show and measure results: before/after pages, previews, and a scene drawn for the demo."""
