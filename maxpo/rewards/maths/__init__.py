"""Mathematical answers: texts into expressions, and exact decisions about their equality."""
