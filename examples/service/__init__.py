"""A whole service to copy: HTTP, PostgreSQL, a Redis cache, queue workers, CPU work in processes, a graceful end."""
