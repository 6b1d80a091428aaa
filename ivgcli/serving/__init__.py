"""OpenAI-compatible servers: many requests in flight, each until it is answered, and what the answers hold."""
