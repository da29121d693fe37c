"""What is open to a program inside, axis by axis: docs/exposure.md says what each can show. There is no score."""
