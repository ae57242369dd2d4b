"""Data of one's own: files, folders and images, read and checked in one place for every command."""
