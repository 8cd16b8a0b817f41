"""A server that speaks the OpenAI protocol: its replies, its limits, its failures."""
