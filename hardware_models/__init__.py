"""What a choice costs on an ARM device: profiles with provenance, latency, flash and peak RAM as factors."""

from hardware_models.memory import ArenaPlan, plan_arena
from hardware_models.model import ArmCostModel, cost_model
from hardware_models.profile import DeviceProfile, list_profiles, load_profile

__all__ = ["ArenaPlan", "ArmCostModel", "DeviceProfile", "cost_model", "list_profiles", "load_profile", "plan_arena"]
