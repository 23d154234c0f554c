"""What is saved of the learner."""
