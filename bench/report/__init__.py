"""From numbers to one self-contained HTML file."""
