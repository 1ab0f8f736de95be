"""What a policy can talk to between its turns (`types.Environment`): tools, games, environments of other packages."""
