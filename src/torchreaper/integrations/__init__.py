"""RePr in other people's training stacks: one module for each, which alone imports the stack."""
