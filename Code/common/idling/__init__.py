"""Around the methods that let patches idle: their cost, their thresholds for a budget, their training, their study."""
