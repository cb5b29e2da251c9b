"""What a report page is made of: markup, drawings, pictures. No browser and no network is needed to make one."""
