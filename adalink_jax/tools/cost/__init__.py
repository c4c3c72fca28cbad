"""What each method costs, side by side: parameters, operations, memory, time; and budgets."""
