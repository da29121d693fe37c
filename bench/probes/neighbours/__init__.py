"""What one instance's load costs another: a victim's work, an aggressor's load, and what its groups were charged."""
