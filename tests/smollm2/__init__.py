"""SmolLM2-135M-Instruct, a real language model that fits the tests, and short real texts for it."""
