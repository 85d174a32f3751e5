"""Quality: what the images of a quantized model are worth, by the field's metrics."""
