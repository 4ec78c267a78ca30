"""From metrics.json to tables in Markdown: nothing here computes a figure, it only sets what is on disk."""
