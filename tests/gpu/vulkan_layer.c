// A Vulkan layer for tests on Mesa's software device. cubecl-spirv 0.11.3 (`lower_shared_implicit`) declares a variable in shared memory
// with a pointer to the pointer's type; the layer gives it the pointer's type before the driver sees the shader. Devices with
// VK_KHR_workgroup_memory_explicit_layout do not get such shaders.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

enum { FIRST_INSTRUCTION = 5, OP_TYPE_POINTER = 32, OP_VARIABLE = 59, WORKGROUP = 4 };

static PFN_vkGetInstanceProcAddr next_instance;
static PFN_vkGetDeviceProcAddr next_device;
static PFN_vkCreateShaderModule next_shader;

static VkResult VKAPI_CALL create_shader(VkDevice device, const VkShaderModuleCreateInfo *info,
                                         const VkAllocationCallbacks *allocator, VkShaderModule *module) {
    size_t words = info->codeSize / 4;
    uint32_t *code = malloc(info->codeSize);
    memcpy(code, info->pCode, info->codeSize);
    // For each id of a pointer type in shared memory: the id of what it points to.
    uint32_t *pointee = calloc(code[3], sizeof *pointee);
    for (size_t at = FIRST_INSTRUCTION; at < words && code[at] >> 16; at += code[at] >> 16) {
        uint32_t operation = code[at] & 0xffff;
        if (operation == OP_TYPE_POINTER && code[at + 2] == WORKGROUP) {
            pointee[code[at + 1]] = code[at + 3];
        }
        if (operation == OP_VARIABLE && code[at + 3] == WORKGROUP && pointee[pointee[code[at + 1]]]) {
            code[at + 1] = pointee[code[at + 1]];
        }
    }
    VkShaderModuleCreateInfo corrected = *info;
    corrected.pCode = code;
    VkResult result = next_shader(device, &corrected, allocator, module);
    free(code);
    free(pointee);
    return result;
}

static VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *allocator,
                                           VkInstance *instance) {
    VkLayerInstanceCreateInfo *link = (void *)info->pNext;
    while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO)) {
        link = (void *)link->pNext;
    }
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    next_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    PFN_vkCreateInstance create = (PFN_vkCreateInstance)next_instance(NULL, "vkCreateInstance");
    return create(info, allocator, instance);
}

static VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                         const VkAllocationCallbacks *allocator, VkDevice *device) {
    VkLayerDeviceCreateInfo *link = (void *)info->pNext;
    while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO)) {
        link = (void *)link->pNext;
    }
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr of_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    next_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    PFN_vkCreateDevice create = (PFN_vkCreateDevice)of_instance(NULL, "vkCreateDevice");
    VkResult result = create(physical, info, allocator, device);
    if (result == VK_SUCCESS) {
        next_shader = (PFN_vkCreateShaderModule)next_device(*device, "vkCreateShaderModule");
    }
    return result;
}

static PFN_vkVoidFunction VKAPI_CALL of_device(VkDevice device, const char *name) {
    if (!strcmp(name, "vkCreateShaderModule")) return (PFN_vkVoidFunction)create_shader;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)of_device;
    return next_device(device, name);
}

static PFN_vkVoidFunction VKAPI_CALL of_instance(VkInstance instance, const char *name) {
    if (!strcmp(name, "vkCreateInstance")) return (PFN_vkVoidFunction)create_instance;
    if (!strcmp(name, "vkCreateDevice")) return (PFN_vkVoidFunction)create_device;
    if (!strcmp(name, "vkCreateShaderModule")) return (PFN_vkVoidFunction)create_shader;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)of_device;
    if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)of_instance;
    return next_instance ? next_instance(instance, name) : NULL;
}

VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *version) {
    version->loaderLayerInterfaceVersion = 2;
    version->pfnGetInstanceProcAddr = of_instance;
    version->pfnGetDeviceProcAddr = of_device;
    version->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
