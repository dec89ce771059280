"""OpenAI's endpoints, and what their clients expect beside them."""
