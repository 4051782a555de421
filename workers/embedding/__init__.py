"""Models: CLIP on torch, and what is wrapped around it. Nothing else imports torch."""
