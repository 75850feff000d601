"""Stand-ins for libraries that need hardware of their own."""
