"""From numbers to one self-contained HTML file: `build.build_report`. Its formats are of use without drawing."""
