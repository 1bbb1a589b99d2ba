"""The model: networks in the classes of Stable Diffusion, how they are trained, and a judge of what they draw."""
